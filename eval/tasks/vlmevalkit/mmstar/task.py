"""What heima_vlmevalkit_mmstar.yaml names."""

from eval.vlmevalkit.lmms import VlmEvalKitTask

_task = VlmEvalKitTask("mmstar")
docs = _task.docs
visual = _task.visual
text = _task.text
target = _task.target
process = _task.process
accuracy = _task.accuracy
