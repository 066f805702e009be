"use client";
import Link from "next/link";
import { useSearchParams } from "next/navigation";
import { Suspense, useEffect, useState } from "react";
import { useSession } from "@cloakroom-bff/client/react";

import { call } from "./bff.js";

// An export has a file for each path, so the order is in the query. What reads the query needs Suspense.
export default function Page() {
  return (
    <Suspense>
      <Orders />
    </Suspense>
  );
}

/** The list of orders, and the one in the URL. They are loaded again after a sign-in. */
function Orders() {
  const id = useSearchParams().get("id");
  const { session } = useSession();
  const [orders, setOrders] = useState([]);
  const [problem, setProblem] = useState("");
  const load = () =>
    call("/api/orders").then(
      (all) => {
        setOrders(all);
        setProblem("");
      },
      (err) => err.code !== "not_signed_in" && setProblem(err.message), // Notice says that the session has ended
    );
  useEffect(() => {
    if (session) load();
  }, [session?.id]);
  return (
    <section>
      <h2>Your orders</h2>
      {problem && (
        <p role="alert">
          The orders cannot be loaded: {problem} <button onClick={load}>Try again</button>
        </p>
      )}
      <ul>
        {orders.map((order) => (
          <li key={order.id}>
            <Link href={`/orders?id=${order.id}`}>
              {order.id}: {order.item}
            </Link>
          </li>
        ))}
      </ul>
      {id && orders.length > 0 && (
        <p>
          Order {id}: {orders.find((order) => `${order.id}` === id)?.item ?? "unknown"}
        </p>
      )}
      <img src="/api/picture.svg" alt="A coat" width="48" height="48" />
      <a href="/api/report.csv" download>
        Download the report
      </a>
    </section>
  );
}
