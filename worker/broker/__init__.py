"""RabbitMQ: sessions, topology, subscriber, publisher, control. The only importer of aio_pika and aiormq."""
