"""`python cli.py ...` in a checkout is `diver-trt ...`."""

from diver_trt.cli import main

main()
