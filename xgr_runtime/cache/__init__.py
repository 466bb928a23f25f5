"""What is made once on a machine and used again at later starts."""
