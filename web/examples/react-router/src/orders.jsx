import { Link, useParams, useRouteLoaderData } from "react-router";

/** The list of orders. */
export function Orders() {
  const orders = useRouteLoaderData("orders");
  return (
    <section>
      <h2>Your orders</h2>
      <ul>
        {orders.map(({ id, item }) => (
          <li key={id}>
            <Link to={`/orders/${id}`}>
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
  const { id } = useParams();
  const order = useRouteLoaderData("orders").find((order) => `${order.id}` === id);
  return (
    <>
      <Orders />
      <section>
        Order {id}: {order?.item ?? "unknown"}
      </section>
    </>
  );
}
