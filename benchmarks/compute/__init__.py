"""CIFAR-10 from scratch at equal compute: this package's recipes beside other small networks, in one pipeline."""
