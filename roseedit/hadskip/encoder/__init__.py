"""HadSkip for encoder classifiers: gates per layer and input, trained with the encoder; docs/hadskip-encoders.md."""
