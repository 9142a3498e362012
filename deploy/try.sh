#!/usr/bin/env bash
# Build the image, bring everything up, ask every kind of model, train a little, restart each service, take it all down.
# Wants a Docker engine with compose. BASE_IMAGE, POSTGRES_IMAGE, TORCH_SPEC, TORCH_INDEX and WHEELS (a folder) are heeded.
set -euo pipefail
cd "$(dirname "$0")/.."
export POSTGRES_PASSWORD=${POSTGRES_PASSWORD:-local-test} PORT=${PORT:-18000} COMPOSE_PROJECT_NAME=trefoil-try
export TREFOIL_IMAGE=${TREFOIL_IMAGE:-trefoil:local}
api=http://127.0.0.1:$PORT
is_done=

finish() {
  [ "$is_done" ] || docker compose logs --tail 40 api worker || true
  docker compose down -v --timeout 60 2> /dev/null
}
trap finish EXIT

step() { printf '\n== %s (after %s s)\n' "$1" "$SECONDS"; }
inside() { docker compose exec -T api trefoil "$@" --url http://127.0.0.1:8000; }
says() {
  local said; said=$(cat); printf '%s\n' "$said" | cut -c 1-200
  grep -qi -- "$1" <<< "$said" || { echo "expected: $1" >&2; exit 1; }
}
ask() { curl -fsS "$api$1" ${2:+-H 'content-type: application/json' -d "$2"}; }
up() {
  docker compose up -d --wait --wait-timeout 180 2> /dev/null
  for _ in $(seq 120); do ask /ready 2> /dev/null | grep -q '"ready"' && return; sleep 1; done
  echo "not ready" >&2; exit 1
}

step "lint"
docker compose config -q
docker compose -f docker-compose.yml -f docker-compose.gpu.yml --profile observability config -q
if command -v hadolint > /dev/null; then hadolint Dockerfile; else echo "hadolint is not installed"; fi

step "build"
docker build --quiet ${WHEELS:+--build-context "wheels=$WHEELS"} -t "$TREFOIL_IMAGE" \
  ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} ${TORCH_SPEC:+--build-arg "TORCH_SPEC=$TORCH_SPEC"} \
  ${TORCH_INDEX+--build-arg "TORCH_INDEX=$TORCH_INDEX"} .
docker image inspect --format 'image of {{.Size}} bytes, user {{.Config.User}}' "$TREFOIL_IMAGE"

step "up"
up
docker compose ps --format '{{.Service}} {{.Status}}'

step "ask every kind of model"
inside models
inside chat "What is the capital of France?" -m demo-decoder --temperature 0 | says Paris
inside fill "The capital of France is [MASK]." | says paris
inside classify "What a wonderful film!" -m demo-encoder-sentiment | says positive
inside tag "Emma lives in Lima." | says Lima
inside embed "a text" | says '^\['
ask /v1/tasks/question-answering '{"inputs": {"question": "Where does Emma live?", "context": "Emma lives in Lima."}}' | says Lima
ask /v1/tasks/span-filling '{"inputs": "The capital of France is ___."}' | says "is Paris"
ask /v1/tasks/translation '{"inputs": "Anna lives in Paris.", "parameters": {"src_lang": "en", "tgt_lang": "zh"}}' | says 安娜住在巴黎
ask / | says trefoil
ask /metrics | grep generation_tokens_total | says demo-decoder

rows='{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am clover."}]}'
docker compose exec -T api sh -c "for n in 1 2 3 4 5 6 7 8; do echo '$rows'; done > /tmp/rows.jsonl"
train() {
  inside jobs create demo-decoder /tmp/rows.jsonl --suffix "$1" --set "n_epochs=$2" --set learning_rate=0.002 \
    --set 'lora={"r": 8, "alpha": 16}' "${@:3}"
}

step "train a little"
tuned=$(train clover 12 --watch | tail -1)
echo "trained: $tuned"
inside chat "Who are you?" -m "$tuned" --temperature 0 | says clover

step "restart the worker in the middle of a job"
job=$(train again 40 | tail -1)
for _ in $(seq 60); do ask "/v1/fine_tuning/jobs/$job/events" | grep -q '"metrics"' && break; sleep 1; done
docker compose restart --timeout 60 worker 2> /dev/null
inside jobs watch "$job" 2>&1 | says "ft:demo-decoder:again"

for service in worker db api; do
  step "restart $service"
  docker compose restart --timeout 60 "$service" 2> /dev/null
  up
  inside jobs list --json | says "$tuned"
  inside chat "Who are you?" -m "$tuned" --temperature 0 | says clover
done

step "kill the API's process"
docker compose exec -T api python -c '
import os
for pid in open("/proc/1/task/1/children").read().split(): os.kill(int(pid), 9)' || true
for _ in $(seq 60); do ask /health > /dev/null 2>&1 || break; sleep .2; done
up
inside chat "Who are you?" -m "$tuned" --temperature 0 | says clover

is_done=yes
step "all done"
