"""The three services as real processes: health, timing, who may enter, and what they say when something is away."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psycopg
import pytest
from fastapi import APIRouter

from services.cluster import Cluster, free_port
from services.common import build_app
from services.settings import Settings, SettingsError, load_settings, read_dotenv
from tests.conftest import fresh_database
from tests.platform_parts import OTHER, PASSWORD, TENANT, USER, Platform, Running, platform, serving, until

NAMES = ("auth", "data", "analytics")
LOG_IN = {"tenant_id": TENANT, "username": USER, "password": PASSWORD}


@pytest.fixture(scope="module")
def shop(pg18: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    databases = fresh_database(pg18)
    with platform(next(databases), tmp_path_factory.mktemp("platform")) as made:
        yield made
    next(databases, None)


@pytest.fixture(scope="module")
def services(shop: Platform) -> dict[str, Running]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(NAMES, pool.map(shop.start, NAMES), strict=True))


@pytest.fixture
def pg_alone(tmp_path_factory: pytest.TempPathFactory, pg18: Cluster) -> Iterator[Cluster]:
    """A small server of its own, to be filled up and taken away."""
    folder = Path("/tmp") / f"platform-pg-{tmp_path_factory.mktemp('x').parent.name}-{free_port()}"
    folder.mkdir(mode=0o755)
    cluster = Cluster(folder / "data", settings={"max_connections": "12", "superuser_reserved_connections": "3"})
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def assert_timed(answer: httpx2.Response) -> None:
    assert re.fullmatch(r"\d+\.\d{6}", answer.headers["X-Process-Time"])


@pytest.mark.parametrize("name", NAMES)
def test_health_has_the_runbooks_shape_and_docs_are_there(services: dict[str, Running], name: str) -> None:
    answer = services[name].get("/health")
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"service", "version", "status", "timestamp", "started_at"}
    assert (body["service"], body["version"], body["status"]) == (f"{name}-service", "0.0.1", "healthy")
    assert isinstance(body["timestamp"], float)
    assert_timed(answer)
    assert services[name].get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("name", "method", "path", "status"),
    [
        ("auth", "GET", "/nowhere", 404),
        ("auth", "GET", "/api/v1/login", 405),
        ("auth", "POST", "/api/v1/login", 422),
        ("auth", "GET", "/api/v1/verify", 401),
        ("data", "POST", "/api/v1/ingest/start", 401),
        ("data", "GET", "/api/v1/availability", 401),
        ("data", "GET", "/api/v1/jobs/x", 401),
        ("analytics", "GET", "/api/v1/reports/revenue", 401),
        ("analytics", "GET", "/api/v1/reports/top-pages", 401),
        ("analytics", "POST", "/api/v1/email/send", 401),
    ],
)
def test_every_error_is_timed_and_named(services: dict[str, Running], name: str, method: str, path: str, status: int) -> None:
    body = {} if method == "POST" and name == "auth" else {"x": 1}
    answer = httpx2.request(method, services[name].url + path, json=body if method == "POST" else None, trust_env=False)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "detail"}
    assert_timed(answer)


def test_a_crash_is_timed_too_and_its_traceback_is_in_the_error_log(tmp_path: Path) -> None:
    router = APIRouter()

    @router.get("/crash")
    async def crash() -> None:
        raise LookupError("a bug")

    with serving(build_app("auth-service", router, Settings(log_dir=tmp_path, postgres_port=free_port()))) as url:
        answer = httpx2.get(f"{url}/api/v1/crash", trust_env=False)
    assert answer.status_code == 500
    assert answer.json()["error"] == "internal"
    assert_timed(answer)
    assert "LookupError: a bug" in (tmp_path / "auth-service-error.log").read_text()


def test_login_gives_a_token_that_verifies_for_its_tenant_only(services: dict[str, Running]) -> None:
    token = services["auth"].post("/api/v1/login", json=LOG_IN).json()
    assert token["token_type"] == "Bearer"
    assert token["expires_in"] > 0
    bearer = {"Authorization": f"Bearer {token['access_token']}"}
    verified = services["auth"].get("/api/v1/verify", headers={**bearer, "X-Tenant-Id": TENANT})
    assert (verified.status_code, verified.json()) == (200, {"active": True, "subject": USER, "tenant_id": TENANT})
    for wrong in ({"X-Tenant-Id": OTHER}, {"X-Tenant-Id": "nobody"}, {}):
        refused = services["auth"].get("/api/v1/verify", headers={**bearer, **wrong})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    forged = services["auth"].get("/api/v1/verify", headers={"Authorization": "Bearer forged", "X-Tenant-Id": TENANT})
    assert forged.status_code == 401


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"username": "nobody"}, {"tenant_id": "nobody"}])
def test_a_wrong_login_is_401_and_does_not_tell_why(services: dict[str, Running], shop: Platform, wrong: dict[str, str]) -> None:
    answer = services["auth"].post("/api/v1/login", json={**LOG_IN, **wrong})
    assert answer.status_code == 401
    assert answer.json()["detail"] == "wrong tenant, username or password"
    assert PASSWORD not in "".join(path.read_text() for path in shop.logs.glob("*.log"))


@pytest.mark.parametrize("value", ["\x00", "a\x00b"])
def test_text_that_postgres_cannot_hold_is_the_callers_error(services: dict[str, Running], value: str) -> None:
    answer = services["auth"].post("/api/v1/login", json={**LOG_IN, "tenant_id": value})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_value")


def test_a_bad_body_is_refused_without_repeating_it(services: dict[str, Running]) -> None:
    answer = services["auth"].post("/api/v1/login", json={"tenant_id": 5, "password": "hunter2", "username": []})
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


def test_a_tenant_that_is_switched_off_may_not_enter_anywhere(services: dict[str, Running], shop: Platform) -> None:
    headers = shop.headers(OTHER)
    paths = (("auth", "/api/v1/verify"), ("data", "/api/v1/jobs/none"), ("analytics", "/api/v1/reports/revenue"))
    assert [services[name].get(path, headers=headers).status_code for name, path in paths] == [200, 404, 200]
    shop.query("UPDATE tenant_config SET is_active = false WHERE id = %(id)s", id=OTHER)
    try:
        assert {services[name].get(path, headers=headers).status_code for name, path in paths} == {401}
        assert services["auth"].post("/api/v1/login", json={**LOG_IN, "tenant_id": OTHER}).status_code == 401
    finally:
        shop.query("UPDATE tenant_config SET is_active = true WHERE id = %(id)s", id=OTHER)


def test_the_provider_away_is_503_with_its_own_name(shop: Platform) -> None:
    headers = shop.headers()
    auth = shop.start("auth", IDP_URL=f"http://127.0.0.1:{free_port()}", LOG_DIR=str(shop.folder / "idp-away"))
    for answer in (auth.post("/api/v1/login", json=LOG_IN), auth.get("/api/v1/verify", headers=headers)):
        assert (answer.status_code, answer.json()["error"]) == (503, "idp_unavailable")
        assert_timed(answer)
    assert "idp_unavailable" in (shop.folder / "idp-away" / "auth-service-error.log").read_text()


def test_a_provider_that_never_answers_is_503_at_the_deadline(shop: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        auth = shop.start("auth", IDP_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
        answer = auth.post("/api/v1/login", json=LOG_IN)
    assert (answer.status_code, answer.json()["error"]) == (503, "idp_unavailable")
    assert "within 5 s" in answer.json()["detail"]


def test_each_service_tells_postgres_its_name(services: dict[str, Running], shop: Platform) -> None:
    def names() -> set[str]:
        rows = shop.query("SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = 'analytics_user'")
        return {row["application_name"] for row in rows}

    until(lambda: {f"{name}-service" for name in NAMES} <= names(), "each service has a connection")


def test_connections_exhausted_is_a_clear_503_and_heals(pg_alone: Cluster, shop: Platform) -> None:
    databases = fresh_database(pg_alone)
    with platform(next(databases), shop.folder / "exhausted") as small:
        pass
    held = [psycopg.connect(pg_alone.dsn(user="analytics_user")) for _ in range(9)]
    auth = shop.start("auth", POSTGRES_PORT=str(pg_alone.port), POSTGRES_DB=small.environ["POSTGRES_DB"], LOG_DIR=small.environ["LOG_DIR"])
    assert auth.get("/health").status_code == 200
    answer = auth.post("/api/v1/login", json=LOG_IN)
    assert (answer.status_code, answer.json()["error"]) == (503, "database_unavailable")
    assert 2.5 < float(answer.headers["X-Process-Time"]) < 6
    assert "remaining connection slots are reserved" in (small.logs / "auth-service-error.log").read_text()
    for connection in held:
        connection.close()
    until(lambda: auth.post("/api/v1/login", json=LOG_IN).status_code == 200, "logins work again")
    # And away altogether, then back, on the same pool.
    pg_alone.stop()
    assert auth.post("/api/v1/login", json=LOG_IN).json()["error"] == "database_unavailable"
    pg_alone.start()
    until(lambda: auth.post("/api/v1/login", json=LOG_IN).status_code == 200, "logins work again")


def test_the_pool_never_exceeds_its_settings_and_waits_its_turn(shop: Platform) -> None:
    headers = shop.headers()
    analytics = shop.start("analytics", DATABASE_POOL_SIZE="1", DATABASE_MAX_OVERFLOW="1", LOG_DIR=str(shop.folder / "small-pool"))
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'analytics-service' AND query LIKE '%%page_view%%'"
    with psycopg.connect(shop.dsn) as blocker, ThreadPoolExecutor(6) as pool:
        blocker.execute("LOCK TABLE page_view IN ACCESS EXCLUSIVE MODE")
        path = "/api/v1/reports/top-pages"
        asked = [pool.submit(analytics.get, path, headers=headers) for _ in range(6)]
        until(lambda: shop.one(count) == 2, "two queries wait for the lock")
        until(lambda: any(answer.done() for answer in asked), "the others are told")
        busy = [answer.result() for answer in asked if answer.done()]
        assert {answer.status_code for answer in busy} == {503}
        assert "2 connections of analytics-service" in busy[0].json()["detail"]
        blocker.rollback()
        assert 200 in {answer.result().status_code for answer in asked}


def test_reports_go_to_the_read_host_only(services: dict[str, Running], shop: Platform) -> None:
    headers = shop.headers()
    away = shop.start("analytics", POSTGRES_READ_HOST="127.0.0.1", POSTGRES_READ_PORT=str(free_port()), LOG_DIR=str(shop.folder / "read"))
    assert away.get("/api/v1/reports/revenue", headers=headers).json()["error"] == "database_unavailable"
    assert away.get("/api/v1/email/jobs/none", headers=headers).status_code == 404
    assert services["analytics"].get("/api/v1/reports/revenue", headers=headers).status_code == 200


def test_log_lines_are_json_and_follow_a_moved_file(services: dict[str, Running], shop: Platform) -> None:
    path = shop.logs / "auth-service.log"
    services["auth"].get("/before")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"timestamp", "level", "logger", "event"} <= set(rows[-1])
    assert any(row.get("path") == "/before" and row["status"] == 404 for row in rows)
    path.rename(shop.logs / "auth-service.log.moved")
    services["auth"].get("/after")
    assert "/after" in path.read_text()


def test_log_files_rotate(tmp_path: Path) -> None:
    from services.logs import FILE_MAX_BYTES, open_logs

    (tmp_path / "auth-service.log").write_bytes(b"x" * FILE_MAX_BYTES)
    with serving(build_app("auth-service", APIRouter(), Settings(log_dir=tmp_path, postgres_port=free_port()))):
        assert (tmp_path / "auth-service.log.1").stat().st_size == FILE_MAX_BYTES
    with open_logs("auth-service", tmp_path / "auth-service.log" / "not-a-folder"):
        pass  # serves without its log


def test_a_bad_setting_is_one_line_and_no_traceback(shop: Platform) -> None:
    running = shop.launch("data", DATABASE_POOL_SIZE="many", LEASE_S="0")
    assert running.process.wait(20) == 2
    said = running.output.read_text().strip()
    assert said == "settings: DATABASE_POOL_SIZE: expected a number, found 'many'; LEASE_S: expected 1 or more, found 0.0"


def test_dotenv_is_read_and_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert read_dotenv(path) == {}
    path.write_text("# comment\n\nexport DATABASE_POOL_SIZE=3\nPOSTGRES_PASSWORD='a=b c'\nPOSTGRES_HOST=\n")
    settings = load_settings(read_dotenv(path))
    assert (settings.database_pool_size, settings.pool_max, settings.postgres_password) == (3, 6, "a=b c")
    assert settings.postgres_host == "localhost"
    assert "a=b c" not in repr(settings)
    path.write_text("POSTGRES_HOST=x\nnonsense\n")
    with pytest.raises(SettingsError, match=r"\.env:2: expected NAME=value"):
        read_dotenv(path)


def test_a_dead_background_loop_ends_the_process(database18: str, tmp_path: Path) -> None:
    with platform(database18, tmp_path) as own:  # not the shared one: its data service would die of the same
        data = own.start("data")
        # The worker's own statement becomes impossible: not an outage, but a bug, which must not go unseen.
        own.query("ALTER TABLE processing_jobs RENAME COLUMN worker TO labourer")
        assert data.process.wait(15) is not None
        assert "a background loop died" in (own.logs / "data-service-error.log").read_text()


def test_logins_in_parallel(services: dict[str, Running]) -> None:
    started = threading.Barrier(8)

    def log_in(_: int) -> int:
        started.wait(10)
        return services["auth"].post("/api/v1/login", json=LOG_IN).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(log_in, range(8))) == {200}
