"""What both workers are made of."""
