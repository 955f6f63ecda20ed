"""The judge: a language model behind the OpenAI API that grades, never paid twice.

`client` asks and remembers, `cache` keeps every reply, `batch` asks through the Batch API,
`endpoint` has what both ways of asking share, `similarity` has the prompt that grades
reconstructions, `server` opens the judge of the parameters.
"""


class JudgeError(RuntimeError):
    """The judge cannot be used, or left something unanswered; the message says what."""
