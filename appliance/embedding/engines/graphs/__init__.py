"""Model folders (`config.json` and weights) into ONNX graphs of standard operators, without torch or transformers.

`build` is the program; each architecture has a module; `writer`, `attention` and `weights` are what they share.
"""
