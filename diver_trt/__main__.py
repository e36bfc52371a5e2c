"""`python -m diver_trt` is `diver-trt`."""

from diver_trt.cli import main

main()
