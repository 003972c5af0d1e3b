"""What a model has learned and how, as pictures: ``pictures`` draws a run's curves, its confusions and its predictions."""
