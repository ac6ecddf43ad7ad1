"""Runs the whole course at toy size: autoencoder, text to image, text to video, samples, report."""

from moviegen.demo import course

run = course.run
