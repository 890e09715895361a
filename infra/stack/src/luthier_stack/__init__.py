"""The embedded runner: starts a broker, a database and the services on one machine and keeps them running.

It is for trying Luthier, for development and for tests. In production the same services are started by an
orchestrator, against a real Kafka, MongoDB and S3.
"""
