"""Text messages, spam and not: embedded ones drawn from a model, and the SMS Spam Collection."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimax.data.places import Need, find, reading
from minimax.errors import check_count

SMS_FILE = "sms_spam/SMSSpamCollection"
SMS = Need("sms_spam", "0.5 MB, 5,574 messages", "messages")

# Each topic's words; a message draws its words from one topic and from everyday words.
TOPICS = {
    "ham": {
        "meeting": "meeting agenda room tomorrow minutes project report slides notes chair",
        "family": "mum dad dinner sunday kids school home grandma birthday garden",
        "travel": "train station ticket platform arrive late airport hotel luggage map",
        "study": "lecture homework exam library professor chapter proof seminar thesis book",
    },
    "spam": {
        "prize": "winner prize claim free cash bonus lottery selected reward urgent",
        "medicine": "pills cheap pharmacy discount prescription order weight loss guaranteed trial",
        "loan": "loan credit approved rate debt mortgage apply instant money offer",
    },
}
EVERYDAY = (
    "hello please thanks today call now time see you we will can let know good new send back "
    "week get make day soon just if about with from for"
).split()


@dataclass(frozen=True)
class Messages:
    """Messages as texts, with ``y`` (N,): 1 for spam, 0 for ham.

    Introduced in *Adversarial examples*.
    """

    texts: list[str]
    y: Tensor

    def __len__(self) -> int:
        return len(self.texts)


def drawn_messages(split: str, count: int = 1000) -> Messages:
    """Return ``count`` messages, 40 % of them spam, drawn from a small topic model.

    A message has a class, a topic of that class, and 6 to 18 words. Each word comes from the topic
    (probability 0.45), from everyday words (0.5), or from any topic of either class (0.05), so that
    single words mislead now and then. The two splits come from different seeds.
    Raises ValueError for a count below 1. Introduced in *Adversarial examples*.
    """
    count = check_count("count", count)
    rng = np.random.default_rng({"train": 2004, "test": 2005}[split])
    y = (rng.random(count) < 0.4).astype(int)
    anything = " ".join(words for topics in TOPICS.values() for words in topics.values()).split()
    texts = []
    for label in y:
        topics = list(TOPICS["spam" if label else "ham"].values())
        topic = topics[rng.integers(len(topics))].split()
        sources = rng.choice(3, size=rng.integers(6, 19), p=[0.45, 0.5, 0.05])
        words = [rng.choice((topic, EVERYDAY, anything)[source]) for source in sources]
        texts.append(" ".join(words))
    return Messages(texts, torch.from_numpy(y))


def sms_spam(split: str) -> Messages:
    """Return the SMS Spam Collection (Almeida and Hidalgo, 2012): every fifth message is for test.

    Raises DataError if the file is not there or a line of it is damaged.
    Introduced in *Adversarial examples*.
    """
    path = find(SMS, SMS_FILE)
    with reading(SMS, path):
        pairs = [line.split("\t", 1) for line in path.read_text("utf-8").splitlines() if line]
        kinds, texts = zip(*pairs, strict=True)
        y = torch.tensor([("ham", "spam").index(kind) for kind in kinds])
    if len(pairs) != 5574:
        raise SMS.damaged(path, f"{len(pairs)} messages, not 5,574")
    chosen = [i for i in range(len(pairs)) if (i % 5 == 0) == (split == "test")]
    return Messages([texts[i] for i in chosen], y[chosen])
