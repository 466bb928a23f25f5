"""What is asked, in no client's dialect, and how it becomes a job: of one model and one catalog."""
