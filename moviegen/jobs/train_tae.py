"""Trains the temporal autoencoder; a killed run continues from its workdir as if nothing had happened."""

from moviegen.training import autoencoder

run = autoencoder.train
