"""GitHub's and Jira's issue trackers, and a plain webhook receiver, as far as a monitor uses them; the published rules are enforced."""

import base64
import hashlib
import hmac
import json
import re
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.externals.script import Script, Step

TITLE_MAX, SUMMARY_MAX, BODY_MAX, LABEL_MAX = 256, 255, 65_536, 50


def create_app(*, token: str, user: str = "", secret: str = "", jira_is_cloud: bool = True) -> Starlette:
    """``/repos/…`` is GitHub, ``/rest/api/…`` is Jira, ``/hook`` takes webhooks; ``/_received`` and ``/_script`` are for tests.

    Jira Cloud has no search in API 2 any more (410 Gone); Jira Server and Data Center have no API 3 (404).
    """
    trackers = _Trackers(token, user, secret)
    in_api_3, in_api_2 = trackers.jira_search_cloud, trackers.jira_search_gone
    if not jira_is_cloud:
        in_api_3, in_api_2 = trackers.jira_no_api_3, trackers.jira_search
    script = Script()

    def scripted(behave: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            body = await request.body()

            async def call() -> Response:
                answer: Response = behave(request, body)
                return answer

            return await script.run(call, _refuse)

        return endpoint

    async def received(_: Request) -> Response:
        return JSONResponse({"issues": trackers.issues, "hooks": trackers.hooks, "refused": trackers.refused})

    return Starlette(
        routes=[
            Route("/repos/{owner}/{name}/issues", scripted(trackers.github_issues), methods=["GET", "POST"]),
            Route("/repos/{owner}/{name}/issues/{number}", scripted(trackers.github_close), methods=["PATCH"]),
            Route("/repos/{owner}/{name}/issues/{number}/comments", scripted(trackers.github_comment), methods=["POST"]),
            Route("/rest/api/3/search/jql", scripted(in_api_3), methods=["POST"]),
            Route("/rest/api/2/search", scripted(in_api_2), methods=["POST"]),
            Route("/rest/api/2/issue", scripted(trackers.jira_create), methods=["POST"]),
            Route("/rest/api/2/issue/{key}", scripted(trackers.jira_issue), methods=["GET"]),
            Route("/rest/api/2/issue/{key}/comment", scripted(trackers.jira_comment), methods=["POST"]),
            Route("/rest/api/2/issue/{key}/transitions", scripted(trackers.jira_transitions), methods=["GET", "POST"]),
            Route("/hook", scripted(trackers.hook), methods=["POST"]),
            Route("/_received", received),
            script.route(),
        ]
    )


def _refuse(step: Step) -> tuple[int, dict[str, object]]:
    return step.status or 200, {"message": step.error or "as scripted"}


class _Trackers:
    def __init__(self, token: str, user: str, secret: str) -> None:
        self._bearer = f"Bearer {token}"
        self._basic = "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()
        self._secret = secret
        self.issues: list[dict[str, Any]] = []
        self.hooks: list[dict[str, Any]] = []
        self.refused: list[str] = []

    # --- GitHub ----------------------------------------------------------------------------------------------------

    def github_issues(self, request: Request, body: bytes) -> Response:
        if not self._allowed(request):
            return self._no(401, {"message": "Bad credentials"})
        if request.method == "GET":
            label = request.query_params.get("labels", "")
            return JSONResponse([issue for issue in self.issues if label in issue["labels"]][:1])
        sent = json.loads(body)
        if not sent.get("title") or len(sent["title"]) > TITLE_MAX or len(sent.get("body", "")) > BODY_MAX:
            return self._no(422, {"message": "Validation Failed"})
        if any(len(label) > LABEL_MAX for label in sent.get("labels", [])):
            return self._no(422, {"message": "Validation Failed"})
        return JSONResponse(self._open(sent["title"], sent.get("body", ""), sent.get("labels", [])), 201)

    def github_close(self, request: Request, body: bytes) -> Response:
        issue = self._find(request.path_params["number"])
        if not self._allowed(request) or issue is None:
            return self._no(404, {"message": "Not Found"})
        issue["state"] = json.loads(body)["state"]
        return JSONResponse(issue)

    def github_comment(self, request: Request, body: bytes) -> Response:
        issue = self._find(request.path_params["number"])
        if not self._allowed(request) or issue is None:
            return self._no(404, {"message": "Not Found"})
        issue["comments"].append(json.loads(body)["body"])
        return JSONResponse({"id": 1}, 201)

    # --- Jira ------------------------------------------------------------------------------------------------------

    def jira_search_cloud(self, request: Request, body: bytes) -> Response:
        """Refuses a query without a bound; of an issue, only its id unless more is named; and there is no total."""
        if not self._allowed(request):
            return self._no(401, {"errorMessages": ["not authenticated"]})
        asked = json.loads(body)
        if not re.search(r'(project|labels) = "', asked["jql"]):
            return self._no(400, {"errorMessages": ["Unbounded JQL queries are not allowed here."]})
        named = set(asked.get("fields", ())) & {"key", "*all", "*navigable"}
        issues = self._labelled(asked["jql"])
        listed = [{"id": str(issue["number"]), **({"key": f"OPS-{issue['number']}"} if named else {})} for issue in issues]
        return JSONResponse({"issues": listed, "isLast": True})

    def jira_search_gone(self, request: Request, body: bytes) -> Response:
        return self._no(410, {"errorMessages": ["The requested API has been removed. Please migrate to the /rest/api/3/search/jql API."]})

    def jira_no_api_3(self, request: Request, body: bytes) -> Response:
        return self._no(404, {"message": "null for uri: /rest/api/3/search/jql", "status-code": 404})

    def jira_search(self, request: Request, body: bytes) -> Response:
        if not self._allowed(request):
            return self._no(401, {"errorMessages": ["not authenticated"]})
        issues = [{"id": str(issue["number"]), "key": f"OPS-{issue['number']}"} for issue in self._labelled(json.loads(body)["jql"])]
        return JSONResponse({"startAt": 0, "maxResults": 1, "total": len(issues), "issues": issues})

    def jira_issue(self, request: Request, body: bytes) -> Response:
        issue = self._find(request.path_params["key"].removeprefix("OPS-"))
        if not self._allowed(request) or issue is None:
            return self._no(404, {"errorMessages": ["Issue does not exist"]})
        status = {"name": "To Do", "statusCategory": {"key": "new"}}
        if issue["state"] == "closed":
            status = {"name": "Done", "statusCategory": {"key": "done"}}
        return JSONResponse({"key": f"OPS-{issue['number']}", "fields": {"status": status}})

    def jira_create(self, request: Request, body: bytes) -> Response:
        if not self._allowed(request):
            return self._no(401, {"errorMessages": ["not authenticated"]})
        fields = json.loads(body)["fields"]
        errors = {}
        if not fields.get("summary") or len(fields["summary"]) > SUMMARY_MAX or "\n" in fields["summary"]:
            errors["summary"] = "The summary is invalid."
        if any(" " in label for label in fields.get("labels", [])):
            errors["labels"] = "The label contains spaces which is invalid."
        if errors:
            return self._no(400, {"errorMessages": [], "errors": errors})
        issue = self._open(fields["summary"], fields.get("description", ""), fields.get("labels", []))
        return JSONResponse({"id": "1", "key": f"OPS-{issue['number']}"}, 201)

    def jira_comment(self, request: Request, body: bytes) -> Response:
        issue = self._find(request.path_params["key"].removeprefix("OPS-"))
        if not self._allowed(request) or issue is None:
            return self._no(404, {"errorMessages": ["Issue does not exist"]})
        issue["comments"].append(json.loads(body)["body"])
        return JSONResponse({"id": "1"}, 201)

    def jira_transitions(self, request: Request, body: bytes) -> Response:
        issue = self._find(request.path_params["key"].removeprefix("OPS-"))
        if not self._allowed(request) or issue is None:
            return self._no(404, {"errorMessages": ["Issue does not exist"]})
        offered = [{"id": "11", "name": "In Progress"}, {"id": "31", "name": "Done"}] if issue["state"] == "open" else []
        if request.method == "GET":
            return JSONResponse({"transitions": offered})
        if json.loads(body)["transition"]["id"] != "31" or not offered:
            return self._no(400, {"errorMessages": ["It is not possible to take this transition."]})
        issue["state"] = "closed"
        return Response(status_code=204)

    # --- a plain receiver ------------------------------------------------------------------------------------------

    def hook(self, request: Request, body: bytes) -> Response:
        right = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        if request.headers.get("Authorization") != self._bearer or request.headers.get("X-Monitor-Signature") != right:
            return self._no(401, {"message": "who are you?"})
        self.hooks.append(json.loads(body))
        return Response(status_code=204)

    def _labelled(self, jql: str) -> list[dict[str, Any]]:
        found = re.search(r'labels = "([^"]+)"', jql)
        return [issue for issue in self.issues if found and found[1] in issue["labels"]][:1]

    def _allowed(self, request: Request) -> bool:
        return request.headers.get("Authorization") in {self._bearer, self._basic}

    def _open(self, title: str, body: str, labels: list[str]) -> dict[str, Any]:
        number = len(self.issues) + 1
        issue = {"number": number, "title": title, "body": body, "labels": labels, "state": "open", "comments": []}
        self.issues.append(issue)
        return issue

    def _find(self, number: str) -> dict[str, Any] | None:
        return next((issue for issue in self.issues if str(issue["number"]) == number), None)

    def _no(self, status: int, body: dict[str, object]) -> Response:
        self.refused.append(str(body))
        return JSONResponse(body, status)
