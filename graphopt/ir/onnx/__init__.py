"""The ONNX storage: regions of an `onnx_ir.Model` behind the Graph protocol."""
