"""Decoders on the Rockchip NPU, run by librkllmrt.so in a process of its own."""
