"""Trains the generator; a killed run continues from its workdir as if nothing had happened."""

from moviegen.training import generator

run = generator.train
