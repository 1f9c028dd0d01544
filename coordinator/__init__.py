"""The daemon that gives work to the right car, takes the results into custody, and can say why."""
