"""Prometheus names and counters, in one place. The meanings are vLLM's, so its dashboards work with our prefix."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
E2E_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
LABEL = ("model_name",)
CACHE_LABELS = (*LABEL, "block_size", "num_gpu_blocks")
"""vLLM's words for the slots of a page and the number of pages, whatever the device."""


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_models: list[Gauge | Counter | Histogram] = []
        self.running = self._gauge("num_requests_running", "Sequences in the running batch.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences waiting for a place.")
        self.cache_usage = self._gauge("kv_cache_usage_perc", "Share of KV pages in use, 1 is all.")
        self.prefix_queries = self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Tokens found in the prefix cache.")
        self.preemptions = self._counter("num_preemptions", "Sequences pre-empted for want of pages.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens taken in.")
        self.generated_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.finished = self._counter("request_success", "Requests that ended, by reason.", (*LABEL, "finished_reason"))
        self.cache_config = self._gauge("cache_config_info", "KV pages and their slots.", CACHE_LABELS)
        self.restarts = self._counter("engine_restarts", "Engine processes started again after a loss.")
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_S)
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "Between two tokens.", ITL_S)
        self.e2e_latency = self._histogram("e2e_request_latency_seconds", "Arrival to end.", E2E_S)
        self.queue_time = self._histogram("request_queue_time_seconds", "Arrival to a place in the batch.", E2E_S)
        self.prefill_time = self._histogram("request_prefill_time_seconds", "Place to first token.", E2E_S)
        self.decode_time = self._histogram("request_decode_time_seconds", "First token to last.", E2E_S)
        self.inference_time = self._histogram("request_inference_time_seconds", "Place to last token.", E2E_S)
        self.time_per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean of a request's times between tokens.", ITL_S
        )
        self.request_max_tokens = self._histogram("request_params_max_tokens", "max_tokens of a request.", TOKENS)
        self.request_n = self._histogram("request_params_n", "n of a request.", (1, 2, 5, 10, 20))
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.request_generated_tokens = self._histogram(
            "request_generation_tokens", "Generated tokens of a request.", TOKENS
        )
        self.tasks = self._counter("task_requests", "Requests that a model was found for, by task.", (*LABEL, "task"))
        self.jobs = self._gauge("fine_tuning_jobs", "Training jobs, by status.", ("status",))
        self.upstream_up = Gauge(
            "trefoil:upstream_up", "Does the server that answers for a model do so?", LABEL, registry=self.registry
        )
        self.http_requests = self._counter("http_requests", "Responses by route and status.", ("route", "status"))

    def introduce(self, model_name: str) -> None:
        """Every metric of a model is there from the start, at zero."""
        for metric in self._of_models:
            metric.labels(model_name)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = LABEL) -> Gauge:
        gauge = Gauge(f"trefoil:{name}", text, labels, registry=self.registry)
        if labels == LABEL:
            self._of_models.append(gauge)
        return gauge

    def _counter(self, name: str, text: str, labels: Sequence[str] = LABEL) -> Counter:
        counter = Counter(f"trefoil:{name}", text, labels, registry=self.registry)
        if labels == LABEL:
            self._of_models.append(counter)
        return counter

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(f"trefoil:{name}", text, LABEL, buckets=buckets, registry=self.registry)
        self._of_models.append(histogram)
        return histogram
