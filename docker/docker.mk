# Outside `make test`: it needs a Docker engine, or root to start one.

.PHONY: docker
docker: ## Build the images and run the compose picture once on a Docker engine
	@docker/try.sh
