"""What one client may cost before its request counts as one, and how what is wrong is said."""
