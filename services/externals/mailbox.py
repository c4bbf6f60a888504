"""The mailbox as a small page and as JSON, so that people and tests see what was mailed.

A mail's HTML is shown in a sandbox: it may not run, load or navigate anything.
"""

from collections.abc import Awaitable, Callable

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from services.externals.smtp import KEPT, MODES, Mail, Mailbox

SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'"

_PAGES = Environment(autoescape=True)
_FRAME = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #8884 }
iframe { width: 100%; height: 70vh; border: 1px solid #8886; background: white } pre { white-space: pre-wrap } .dim { opacity: .7 }
</style>"""
_LIST = _PAGES.from_string(
    _FRAME
    + """<h1>Mailbox</h1><p class="dim">Every mail the platform and its monitor sent, newest first. Nothing leaves this machine.</p>
{% if mails %}<table><tr><th>Received (UTC)<th>From<th>To<th>Subject</tr>
{% for mail in mails %}<tr><td>{{ mail.received_at.strftime('%H:%M:%S') }}<td>{{ mail.sender }}<td>{{ mail.recipients | join(', ') }}
<td><a href="/mails/{{ mail.id }}">{{ mail.subject }}</a></tr>{% endfor %}</table>{% else %}<p>No mail yet.</p>{% endif %}"""
)
_ONE = _PAGES.from_string(
    _FRAME
    + """<p><a href="/">← Mailbox</a></p><h1>{{ mail.subject }}</h1>
<p class="dim">{{ mail.sender }} → {{ mail.recipients | join(', ') }}, {{ mail.received_at.strftime('%Y-%m-%d %H:%M:%S') }} UTC,
<a href="/mails/{{ mail.id }}/raw">source</a></p>
{% if html %}<iframe sandbox src="/mails/{{ mail.id }}/html" title="The mail as its reader sees it"></iframe>{% endif %}
{% if text %}<h2>Text</h2><pre>{{ text }}</pre>{% endif %}"""
)


class _Pages:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def _asked(self, request: Request) -> Mail:
        mail = self._mailbox.get(int(request.path_params["id"]))
        if mail is None:
            raise HTTPException(404, f"no such mail; the last {KEPT} are kept")
        return mail

    async def inbox(self, _: Request) -> Response:
        page = _LIST.render(title="Mailbox", mails=self._mailbox.newest())
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    async def mail(self, request: Request) -> Response:
        mail = self._asked(request)
        page = _ONE.render(title=mail.subject, mail=mail, text=mail.part("plain"), html=mail.part("html"))
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    async def html(self, request: Request) -> Response:
        return HTMLResponse(self._asked(request).part("html"), headers={"Content-Security-Policy": SANDBOX})

    async def raw(self, request: Request) -> Response:
        return PlainTextResponse(self._asked(request).raw, headers={"X-Content-Type-Options": "nosniff"})

    async def api_list(self, request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if not after.isdecimal():
            raise HTTPException(400, "after: expected the id of a mail")
        mails = self._mailbox.newest(to=request.query_params.get("to", ""), after=int(after))
        return JSONResponse([mail.brief() for mail in mails])

    async def api_mail(self, request: Request) -> Response:
        return JSONResponse(self._asked(request).whole())

    async def health(self, _: Request) -> Response:
        return JSONResponse({"service": "mail", "status": "healthy"})


def create_app(mailbox: Mailbox, switch: Callable[[str], Awaitable[None]] | None = None) -> Starlette:
    """Routes: ``/`` and ``/mails/ID`` (pages), ``/mails/ID/html|raw``, ``/api/mails[?to=&after=]``, ``/api/mails/ID``, ``/health``.

    With ``switch``, faults switch the mail server through ``/_control`` (loopback only).
    """
    pages = _Pages(mailbox)

    async def control(request: Request) -> Response:
        try:
            mode = (await request.json())["mode"]
        except (ValueError, KeyError, TypeError):
            mode = None
        if switch is None or mode not in MODES:
            raise HTTPException(400, f"mode: expected one of {', '.join(MODES)}")
        await switch(mode)
        return JSONResponse({"mode": mode})

    return Starlette(
        routes=[
            Route("/", pages.inbox),
            Route("/mails/{id:int}", pages.mail),
            Route("/mails/{id:int}/html", pages.html),
            Route("/mails/{id:int}/raw", pages.raw),
            Route("/api/mails", pages.api_list),
            Route("/api/mails/{id:int}", pages.api_mail),
            Route("/health", pages.health),
            Route("/_control", control, methods=["POST"]),
        ]
    )
