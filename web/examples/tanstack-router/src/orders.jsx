import { queryOptions, useQuery } from "@tanstack/react-query";
import { Link, useParams } from "@tanstack/react-router";

import { call } from "./bff.js";

export const ordersQuery = queryOptions({ queryKey: ["orders"], queryFn: ({ signal }) => call("/api/orders", { signal }) });

/** The list of orders. After a sign-in it is loaded again: see followSession. */
export function Orders() {
  const { data: orders = [], error, refetch } = useQuery(ordersQuery);
  return (
    <section>
      <h2>Your orders</h2>
      {error && error.code !== "not_signed_in" && (
        <p role="alert">
          The orders cannot be loaded: {error.message} <button onClick={() => refetch()}>Try again</button>
        </p>
      )}
      <ul>
        {orders.map(({ id, item }) => (
          <li key={id}>
            <Link to="/orders/$id" params={{ id }}>
              {id}: {item}
            </Link>
          </li>
        ))}
      </ul>
      <img src="/api/picture.svg" alt="A coat" width="48" height="48" />
      <a href="/api/report.csv" download>
        Download the report
      </a>
    </section>
  );
}

/** One order, with the list. */
export function Order() {
  const { id } = useParams({ strict: false });
  const { data: orders } = useQuery(ordersQuery);
  return (
    <>
      <Orders />
      {orders && (
        <section>
          Order {id}: {orders.find((order) => `${order.id}` === id)?.item ?? "unknown"}
        </section>
      )}
    </>
  );
}
