"""The eight SuperGLUE tasks in the official format, a handful of invented examples each."""

import json
from pathlib import Path
from typing import Any

BOOLQ = [
    {
        "question": question,
        "passage": passage,
        "idx": index,
        "label": label,
    }
    for index, (question, passage, label) in enumerate(
        [
            ("is the bridge made of wood", "The old bridge -- It is a bridge of oak.", True),
            ("do herons eat fish", "Herons hunt in shallow water and eat fish.", True),
            ("is the lake salty", "The lake is fed by a river of fresh water.", False),
            ("can the gate be opened", "The gate was welded shut many years ago.", False),
            ("was the tower rebuilt", "The tower fell in a storm and was rebuilt.", True),
        ]
    )
]
CB = [
    {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": index}
    for index, (premise, hypothesis, label) in enumerate(
        [
            ("A: I know that the mill is closed.", "the mill is closed", "entailment"),
            ("He never said that it rained.", "it rained", "contradiction"),
            ("Did you think they would come?", "they would come", "neutral"),
            ("She forgot that the shop shut at six.", "the shop shut at six", "entailment"),
        ]
    )
]
COPA = [
    {
        "premise": premise,
        "choice1": first,
        "choice2": second,
        "question": question,
        "label": label,
        "idx": index,
    }
    for index, (premise, first, second, question, label) in enumerate(
        [
            ("The kettle boiled.", "I made tea.", "I cut bread.", "effect", 0),
            ("The dog barked.", "It was asleep.", "A stranger came.", "cause", 1),
            ("The lamp went out.", "The oil was used up.", "The sun rose.", "cause", 0),
            ("The rope snapped.", "The boat sank.", "The boat drifted off.", "effect", 1),
        ]
    )
]
MULTIRC = [
    {
        "idx": 7,
        "version": 1.1,
        "passage": {
            "text": "Anna picked plums. Her brother carried them home.",
            "questions": [
                {
                    "question": "Who picked plums?",
                    "answers": [
                        {"text": "Anna", "idx": 10, "label": 1},
                        {"text": "Her brother", "idx": 11, "label": 0},
                    ],
                    "idx": 3,
                },
                {
                    "question": "What was carried home?",
                    "answers": [
                        {"text": "Plums", "idx": 12, "label": 1},
                        {"text": "Pears", "idx": 13, "label": 0},
                        {"text": "What Anna picked", "idx": 14, "label": 1},
                    ],
                    "idx": 4,
                },
            ],
        },
    }
]
RTE = [
    {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": index}
    for index, (premise, hypothesis, label) in enumerate(
        [
            ("The train left at noon.", "A train left.", "entailment"),
            ("The train left at noon.", "The train was late.", "not_entailment"),
            ("Two boys swam.", "Nobody swam.", "not_entailment"),
        ]
    )
]
WIC = [
    {
        "word": "bank",
        "sentence1": "The bank of the river.",
        "sentence2": second,
        "idx": index,
        "label": label,
        "start1": 4,
        "start2": second.index("bank"),
        "end1": 8,
        "end2": second.index("bank") + 4,
        "version": 1.1,
    }
    for index, (second, label) in enumerate(
        [
            ("He sat on the bank and fished.", True),
            ("The bank lends money.", False),
            ("She works at a bank.", False),
        ]
    )
]
WSC = [
    {
        "text": text,
        "target": {
            "span1_text": noun,
            "span1_index": text.split().index(noun.split()[0]),
            "span2_text": pronoun,
            "span2_index": text.split().index(pronoun),
        },
        "idx": index,
        "label": label,
    }
    for index, (text, noun, pronoun, label) in enumerate(
        [
            ("Ben thanked Tom because he had helped.", "Tom", "he", True),
            ("Ben thanked Tom because he had helped.", "Ben", "he", False),
            ("The cup fell off the shelf and it broke.", "shelf", "it", False),
        ]
    )
]


def _entities(text: str, *names: str) -> list[dict[str, int]]:
    return [{"start": text.index(name), "end": text.index(name) + len(name) - 1} for name in names]


def _answer(text: str, name: str) -> dict[str, Any]:
    return {**_entities(text, name)[0], "text": name}


_NEWS = "Ada Byron met Charles in London.\n@highlight\nAda liked his machine\n@highlight\nIt ran"
_KIN = "Ada Byron wrote to Anne Byron about George Byron.\n@highlight\nThe letter is lost"
_BYRONS = ("Ada Byron", "Anne Byron", "George Byron")
"""Whoever is taken for another of them is half right, as SQuAD's F1 counts."""
_FAIR = "The fair in Porto opened.\n@highlight\nMaria came from Lisbon"
RECORD = [
    {
        "source": "News",
        "passage": {"text": _NEWS, "entities": _entities(_NEWS, "Charles", "Ada Byron", "London")},
        "qas": [
            {
                "query": "The machine of @placeholder impressed her",
                "answers": [{"start": 14, "end": 20, "text": "Charles"}],
                "idx": 40,
            },
            {
                "query": "@placeholder wrote about it",
                "answers": [
                    {"start": 0, "end": 8, "text": "Ada Byron"},
                    {"start": 44, "end": 52, "text": "Ada Byron"},
                ],
                "idx": 41,
            },
        ],
        "idx": 20,
    },
    {
        "source": "News",
        "passage": {"text": _FAIR, "entities": _entities(_FAIR, "Porto", "Maria", "Lisbon")},
        "qas": [
            {
                "query": "Visitors to @placeholder were many",
                "answers": [{"start": 12, "end": 16, "text": "Porto"}],
                "idx": 42,
            }
        ],
        "idx": 21,
    },
    {
        "source": "News",
        "passage": {"text": _KIN, "entities": _entities(_KIN, *_BYRONS)},
        "qas": [
            {"query": query, "answers": [_answer(_KIN, name)], "idx": 43 + index}
            for index, (query, name) in enumerate(
                [
                    ("The letter was signed by @placeholder", "Ada Byron"),
                    ("A portrait of @placeholder hung there", "Anne Byron"),
                    ("@placeholder left for Greece", "George Byron"),
                    ("The engine was known to @placeholder", "Ada Byron"),
                    ("@placeholder never answered", "George Byron"),
                    ("The garden belonged to @placeholder", "Anne Byron"),
                ]
            )
        ],
        "idx": 22,
    },
]

FILES: dict[str, list[dict[str, Any]]] = {
    "BoolQ": BOOLQ,
    "CB": CB,
    "COPA": COPA,
    "MultiRC": MULTIRC,
    "ReCoRD": RECORD,
    "RTE": RTE,
    "WiC": WIC,
    "WSC": WSC,
}
EXAMPLES = {
    "BoolQ": 5,
    "CB": 4,
    "COPA": 4,
    "MultiRC": 5,
    "ReCoRD": 9,
    "RTE": 3,
    "WiC": 3,
    "WSC": 3,
}
"""Questions in each file."""


def write(folder: Path, name: str = "val.jsonl") -> Path:
    """All eight files, as the official archive has them."""
    for task, lines in FILES.items():
        (folder / task).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / task / name).write_text(text, encoding="utf-8")
    return folder
