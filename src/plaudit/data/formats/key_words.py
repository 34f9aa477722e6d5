"""What the name of a column says, and whether a cell holds a text: how a key that would be lost although it looks like
an answer or a judgement is found."""

import re
from typing import Any

ANSWERS = {
    *("answer", "answers", "response", "responses", "reply", "replies", "completion", "completions", "output"),
    *("outputs", "candidate", "candidates", "generation", "generations", "summary", "summaries", "conversation"),
    *("chosen", "rejected", "option", "options"),
}
VERDICTS = {
    *("winner", "win", "preferred", "preference", "better", "best", "choice", "chosen", "label", "labels", "verdict"),
    *("vote", "votes", "selected", "judgement", "judgment", "thumbs", "rank", "ranking", "pairwise", "safer"),
}
WORSE = {"worse", "worst", "loser", "lost", "losing", "rejected", "bad", "least"}
"""What names the other one: such a column never says which answer is better."""
GRADES = {"rating", "ratings", "score", "scores", "reward", "feedback", "grade", "helpfulness", "correctness", "stars"}
_OPINIONS = {
    *("kto", "liked", "disliked", "likes", "dislikes", "upvoted", "upvotes", "downvotes", "desirable", "undesirable"),
    *("accepted", "approved", "thumb", "good", "correct"),
}
# The commonest names of answers and of judgements of them, where a table is not in English.
_ELSEWHERE = {
    *("antwort", "antworten", "gut", "schlecht", "besser", "schlechter", "bewertung", "gewinner", "bevorzugt"),
    *("réponse", "réponses", "reponse", "bon", "mauvais", "meilleur", "meilleure", "pire", "choisi", "choisie"),
    *("respuesta", "respuestas", "mejor", "peor", "elegida", "rechazada", "resposta", "respostas", "melhor", "pior"),
    *("risposta", "risposte", "migliore", "peggiore", "antwoord", "beter", "slechter", "svar", "bättre", "sämre"),
    *("odpowiedź", "lepsza", "gorsza", "ответ", "лучше", "хуже", "cevap", "yanıt", "vastaus"),
}
_UNSPACED = ("回答", "答案", "回复", "回覆", "更好", "更差", "選択", "评分", "답변", "응답")
SIDES = (("a", "b"), ("0", "1"), ("1", "2"), ("left", "right"), ("first", "second"))
_TIED = {"tie", "tied", "draw", "both bad", "bothbad", "tie (bothbad)"}
_YES, _NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no"}
_ABOUT = {"id", "ids", "hash", "uuid", "tokens", "length", "count", "url"}
"""What a name ends in that tells something of an answer and is none: conversation_id, completion_tokens."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_ANY_WORD = re.compile(r"[^\W\d_]+|\d+")
_SENTENCE = 5  # words
_ENDS = (".", "!", "?", "…", "。", "！", "？")


def words_of(key: str) -> list[str]:
    """The words of a name: answerA, answer_a and "Answer A" are the same ones."""
    return [word.lower() for word in (_WORD if key.isascii() else _ANY_WORD).findall(key)]


def seems_judged(key: str) -> bool:
    """Whether a key looks like that of an answer or of a judgement."""
    words = words_of(key)
    known = VERDICTS | WORSE | GRADES | _OPINIONS | _ELSEWHERE
    if not words or words[-1] not in _ABOUT:
        known = known | ANSWERS
    return bool(set(words) & known) or any(word in key for word in _UNSPACED)


def seem_answers(key: str, row: dict[str, Any]) -> tuple[str, str] | None:
    """This key and another one, in any language, where only a side tells them apart ('Antwort A', 'Antwort B') and both
    hold sentences; None where there is none."""
    for pair in SIDES:
        for here, there in (pair, pair[::-1]):
            wanted = [there if word == here else word for word in words_of(key)]
            for other in row if wanted != words_of(key) else ():
                both = (key, other) if here == pair[0] else (other, key)
                texts = (row[name] for name in both)
                if words_of(other) == wanted and all(isinstance(t, str) and len(t.split()) > 1 for t in texts):
                    return both
    return None


def unsays_pair(key: str, value: Any) -> bool:
    """Whether a column beside chosen and rejected says that they tie, or stand the wrong way round."""
    said = str(value).strip().lower()
    if said in _TIED and not set(words_of(key)) & {"source", "model", "dataset", "category", "id"}:
        return True
    words = set(words_of(key))
    other = bool(words & VERDICTS) and said == "rejected"
    return (
        other
        or bool(words & {"tie", "tied", "swap", "flipped"} and said in _YES)
        or (words == {"label"} and said in _NO)
    )


def holds_text(value: Any) -> bool:
    """Whether a cell holds a sentence or messages, and not a name, a number or a date."""
    if isinstance(value, list):
        keys = value[0].keys() if value and isinstance(value[0], dict) else ()
        return bool({"role", "from", "content", "value", "text"} & set(keys))
    if not isinstance(value, str):
        return False
    text = value.strip()
    ends = text.endswith(_ENDS) and sum(map(str.isalpha, text)) > 2
    return ends or len(text.split()) >= _SENTENCE
