"""OpenAI's HTTP interface: today only its list of models."""
