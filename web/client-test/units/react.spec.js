import { act, createElement as h } from "react";
import { createRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { expect, test } from "vitest";

import { CloakroomProvider, RequireSession, useExpiry, useSession } from "@cloakroom-bff/client/react";
import { mockClient } from "@cloakroom-bff/client/testing";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

/** Renders an element below the provider. */
async function render(client, element) {
  const container = document.createElement("div");
  await act(async () => createRoot(container).render(h(CloakroomProvider, { client }, element)));
  return container;
}

function Name() {
  const { authenticated, user, state } = useSession();
  const expiry = useExpiry();
  return h("p", null, authenticated ? user.name : "nobody", ` ${state.status}`, expiry && ` ${expiry.seconds}`);
}

test("useSession and useExpiry render when the session changes", async () => {
  const client = mockClient();
  const page = await render(client, h(Name));
  expect(page.textContent).toBe("nobody signed-out");
  await act(async () => client.signIn({ sub: "alice", name: "Alice" }));
  expect(page.textContent).toBe("Alice signed-in");
  await act(async () => client.expire(30));
  expect(page.textContent).toBe("Alice expiring 30");
  await act(async () => client.signOut("idle"));
  expect(page.textContent).toBe("nobody ended");
});

test("RequireSession leads to the sign-in and shows the fallback", async () => {
  const client = mockClient();
  const logins = [];
  client.login = (options) => logins.push(options);
  const page = await render(client, h(RequireSession, { fallback: "wait" }, h(Name)));
  expect([page.textContent, logins]).toEqual(["wait", [undefined]]);
  await act(async () => client.signIn({ sub: "alice", name: "Alice" }));
  expect(page.textContent).toBe("Alice signed-in");
});

test("below RequireSession there is always a user", async () => {
  const client = mockClient({ user: { sub: "alice", name: "Alice" } });
  const Sure = () => {
    const { authenticated, user } = useSession();
    return h("p", null, `${user.name} ${authenticated}`);
  };
  const page = await render(client, h(RequireSession, { ended: "ended" }, h(Sure)));
  expect(page.textContent).toBe("Alice true");
  await act(async () => client.signOut("idle"));
  expect(page.textContent).toBe("Alice falseended");
  await act(async () => client.signIn({ sub: "bob", name: "Bob" }));
  expect(page.textContent).toBe("Bob true");
});

for (const reason of ["idle", "lifetime", "revoked", "backchannel", "limit", "refused"]) {
  test(`RequireSession shows a notice after an end by ${reason}, and goes nowhere`, async () => {
    const client = mockClient({ user: { sub: "alice", name: "Alice" } });
    const logins = [];
    client.login = async (options) => logins.push(options);
    const page = await render(client, h(RequireSession, { fallback: "wait" }, h("input")));
    page.querySelector("input").value = "a long letter";
    await act(async () => client.signOut(reason));
    const notice = document.querySelector("dialog");
    expect(notice.textContent).toContain("You were signed out.");
    expect([logins, page.querySelector("input").value]).toEqual([[], "a long letter"]);
    notice.querySelector("button").click();
    expect(logins).toEqual([{ window: true }]);
    await act(async () => client.signIn({ sub: "alice", name: "Alice" }));
    expect([document.querySelector("dialog"), page.querySelector("input").value]).toEqual([null, "a long letter"]);
  });
}

for (const reason of ["logout", undefined]) test(`the notice asks for the password after an end by ${reason}`, async () => {
  const client = mockClient({ user: { sub: "alice" } });
  const logins = [];
  await render(client, h(RequireSession));
  await act(async () => client.signOut(reason));
  client.login = (options) => {
    logins.push(options);
    return options.window ? Promise.reject(new DOMException("blocked", "NotAllowedError")) : undefined;
  };
  document.querySelector("dialog button").click();
  await expect.poll(() => logins.length).toBe(2); // without a window, in the page
  expect(logins).toEqual([{ prompt: "login", window: true }, { prompt: "login" }]);
  await act(async () => client.signIn({ sub: "alice" }));
});

test("the notice names a reason that becomes known later", async () => {
  const client = mockClient({ user: { sub: "alice" } });
  await render(client, h(RequireSession));
  await act(async () => client.signOut());
  await act(async () => client.signOut("idle"));
  expect(document.querySelectorAll("dialog").length).toBe(1);
  expect(document.querySelector("dialog").textContent).toContain("You were not active for a while.");
  await act(async () => client.signIn({ sub: "alice" }));
});

test("RequireSession gives another user new children", async () => {
  const client = mockClient({ user: { sub: "alice" } });
  const page = await render(client, h(RequireSession, { ended: "ended" }, h("input")));
  page.querySelector("input").value = "a letter of alice";
  await act(async () => client.signOut("idle"));
  await act(async () => client.signIn({ sub: "bob" }));
  expect(page.querySelector("input").value).toBe("");
});

test("RequireSession waits while the state is not known", async () => {
  const client = mockClient({ state: { status: "loading" } });
  client.login = () => expect.unreachable();
  expect((await render(client, h(RequireSession, { fallback: "wait" }, h(Name)))).textContent).toBe("wait");
});

test("RequireSession with ended keeps what the user has typed", async () => {
  const client = mockClient({ user: { sub: "alice", name: "Alice" } });
  const dialog = h("button", { onClick: () => client.login({ window: true }) }, "Sign in again");
  const page = await render(client, h(RequireSession, { ended: dialog }, h("input", { defaultValue: "" })));
  page.querySelector("input").value = "a long letter";
  await act(async () => client.signOut("idle"));
  expect([page.textContent, page.querySelector("input").value]).toEqual(["Sign in again", "a long letter"]);
  await act(async () => client.unreachable());
  expect(page.querySelector("input").value).toBe("a long letter");
  await act(async () => page.querySelector("button").dispatchEvent(new MouseEvent("click", { bubbles: true })) && client.login());
  expect([page.textContent, page.querySelector("input").value]).toEqual(["", "a long letter"]);
});

test("a server renders the state that is not known yet", () => {
  const client = mockClient({ user: { sub: "alice", name: "Alice" } });
  expect(renderToString(h(CloakroomProvider, { client }, h(Name)))).toContain("nobody");
});

test("without a provider the hooks name what is missing", () => {
  expect(() => renderToString(h(Name))).toThrow("there is no CloakroomProvider");
});
