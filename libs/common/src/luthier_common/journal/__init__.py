"""The journal moves a thing (`advance`), tells what was saved (`relay`), keeps the list (`projector`), checks (`auditor`)."""
