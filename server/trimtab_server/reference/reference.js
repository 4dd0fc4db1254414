/** The API's reference: Swagger UI over this server's own description. */

const KEY = "trimtab-key"; // the playground's, in the same tab

const by = (id) => document.getElementById(id);

/** @param {Headers | Record<string, string>} [headers] */
function withKey(headers = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

async function show() {
  const answer = await fetch("openapi.json", { headers: withKey(), credentials: "omit" });
  by("key-form").hidden = answer.status !== 401;
  if (!answer.ok) {
    by("note").textContent =
      answer.status === 401
        ? "This server needs an API key. It stays in this tab."
        : `The server answered ${answer.status}.`;
    by("key").focus();
    return;
  }
  const spec = await answer.json();
  by("version").textContent = spec.info.version;
  window.SwaggerUIBundle({
    spec,
    domNode: by("reference"),
    deepLinking: true,
    validatorUrl: null, // it would be asked elsewhere
    defaultModelExpandDepth: 2,
    requestInterceptor: (request) => {
      if (new URL(request.url, location.href).origin === location.origin) {
        request.headers = withKey(request.headers);
      }
      return request;
    },
  });
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const darken = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", darken);
darken();
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, by("key").value.trim());
  by("key").value = "";
  show();
});
show();
