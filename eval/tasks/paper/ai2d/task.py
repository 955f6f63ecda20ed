"""What heima_paper_ai2d.yaml names."""

from eval.paper.lmms import PaperTask

_task = PaperTask("ai2d")
docs = _task.docs
visual = _task.visual
text = _task.text
target = _task.target
process = _task.process
accuracy = _task.accuracy
