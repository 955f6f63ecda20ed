"""What heima_vlmevalkit_hallusionbench.yaml names."""

from eval.vlmevalkit.lmms import VlmEvalKitTask

_task = VlmEvalKitTask("hallusionbench")
docs = _task.docs
visual = _task.visual
text = _task.text
target = _task.target
process = _task.process
accuracy = _task.accuracy
figure_accuracy = _task.figure_accuracy
question_accuracy = _task.question_accuracy
