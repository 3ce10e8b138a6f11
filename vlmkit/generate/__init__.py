"""What `caption` and `ask` do with a chat model: requests, answers, schemas, sidecar files, resumed output."""
