"""serve: an HTTP service with the interface of OpenAI's, for chat and for embeddings of texts and pictures alike.

app: the application, made of tables of operations. security, limits: what every request passes first. models: those in
memory, loaded when they are asked for; batching: requests that wait go through them together. chat, embeddings, search,
classify: the operations. page: the routes of a page over the index.
"""
