"""Writing recovered datasets: the job, its run, the output folder and its layouts."""
