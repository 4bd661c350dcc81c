"""The targets that a model can be lowered to, one file each; `ort_*` are the parts of the onnxruntime one."""
