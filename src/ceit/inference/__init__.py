"""From weights to answers: ``predictor`` classifies images, ``device`` chooses where and how precisely to compute."""
