"""What heima_paper_mmstar.yaml names."""

from eval.paper.lmms import PaperTask

_task = PaperTask("mmstar")
docs = _task.docs
visual = _task.visual
text = _task.text
target = _task.target
process = _task.process
accuracy = _task.accuracy
