"""What heima_vlmevalkit_mmbench.yaml names."""

from eval.vlmevalkit.lmms import VlmEvalKitTask

_task = VlmEvalKitTask("mmbench")
docs = _task.docs
visual = _task.visual
text = _task.text
target = _task.target
process = _task.process
accuracy = _task.accuracy
