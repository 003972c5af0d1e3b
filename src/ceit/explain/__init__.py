"""What a model has learned and how: ``pictures`` draws a run's curves, its confusions and its predictions."""
