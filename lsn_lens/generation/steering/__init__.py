"""Make a model write in another language, or leave one: texts under interventions, and what they say."""
