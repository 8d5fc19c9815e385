"""A question, what answers it and what does not: the texts that adapters are tested with."""

MODEL = "all-minilm-l6-v2"
QUERY = "Which animal sleeps on the sofa?"
DOCUMENTS = ["A cat is asleep on the sofa.", "Interest rates rose again in March.", "A dog barks at the postman."]
