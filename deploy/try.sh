#!/usr/bin/env bash
# Build the image, bring everything up, ask every kind of model, train a little, restart each service, take it all down.
# Wants a Docker engine with compose. BASE_IMAGE, POSTGRES_IMAGE, TORCH_SPEC, TORCH_INDEX and WHEELS (a folder) are heeded.
set -euo pipefail
cd "$(dirname "$0")/.."
export POSTGRES_PASSWORD=${POSTGRES_PASSWORD:-local-test} PORT=${PORT:-18000} COMPOSE_PROJECT_NAME=trefoil-try
trap 'docker compose logs --tail 30 api worker || true; docker compose down -v --timeout 60' EXIT

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
inside() { docker compose exec -T api trefoil "$@" --url http://127.0.0.1:8000; }
says() { grep -q "$1" || { echo "expected: $1" >&2; exit 1; }; }

step "build"
docker build ${WHEELS:+--build-context "wheels=$WHEELS"} -t "${TREFOIL_IMAGE:-trefoil:local}" \
  ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} ${TORCH_SPEC:+--build-arg "TORCH_SPEC=$TORCH_SPEC"} \
  ${TORCH_INDEX+--build-arg "TORCH_INDEX=$TORCH_INDEX"} .
docker image inspect --format 'image of {{.Size}} bytes, user {{.Config.User}}' "${TREFOIL_IMAGE:-trefoil:local}"

step "up"
docker compose config -q
docker compose up -d --wait --wait-timeout 180
for _ in $(seq 60); do curl -fsS "http://127.0.0.1:$PORT/ready" > /dev/null && break; sleep 1; done
curl -fsS "http://127.0.0.1:$PORT/ready"

step "ask every kind of model"
inside models | tee /tmp/trefoil-try-models
inside chat "What is the capital of France?" -m demo-decoder --temperature 0 | tee /dev/stderr | says Paris
if grep -q fill-mask /tmp/trefoil-try-models; then
  inside fill "The capital of France is [MASK]." --json | says token_str
  inside embed "a text" | says '\['
fi
if grep -q text2text-generation /tmp/trefoil-try-models; then
  curl -fsS "http://127.0.0.1:$PORT/v1/tasks/span-filling" -H 'content-type: application/json' \
    -d '{"inputs": "The capital of France is ___."}' | says spans
fi
curl -fsS "http://127.0.0.1:$PORT/" | says trefoil

step "train a little"
docker compose exec -T api sh -c 'for n in 1 2 3 4 5 6 7 8; do
  echo "{\"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}, {\"role\": \"assistant\", \"content\": \"I am clover.\"}]}"; done > /tmp/rows.jsonl'
tuned=$(docker compose exec -T api trefoil jobs create demo-decoder /tmp/rows.jsonl --suffix clover --set n_epochs=12 \
  --set learning_rate=0.002 --set 'lora={"r": 8, "alpha": 16}' --watch --url http://127.0.0.1:8000 | tail -1)
echo "trained: $tuned"
inside chat "Who are you?" -m "$tuned" --temperature 0 | tee /dev/stderr | says clover

for service in worker db api; do
  step "restart $service"
  docker compose restart --timeout 60 "$service"
  docker compose up -d --wait --wait-timeout 180
  for _ in $(seq 60); do curl -fsS "http://127.0.0.1:$PORT/ready" > /dev/null && break; sleep 1; done
  inside jobs list | says "$tuned"
  inside chat "Who are you?" -m "$tuned" --temperature 0 | says clover
done

step "all done"
