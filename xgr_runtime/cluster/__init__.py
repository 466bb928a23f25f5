"""A deployment on a Ray cluster: who runs where, how many, and who starts them. Ray carries no request."""
