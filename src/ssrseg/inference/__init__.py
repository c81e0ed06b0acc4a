"""A trained model, used: whole or by windows, on pictures, videos and labelled sets, and exported."""
