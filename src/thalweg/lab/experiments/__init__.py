"""One file per figure or table of the seeds; a file's name with dashes is the experiment's name."""
